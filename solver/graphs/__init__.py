"""Any model graph between a device and a server: the cheapest split by minimum cut."""
