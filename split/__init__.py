"""The running system: a device and a server train one model together, as the letter's Section II describes, and hold the prediction against the clock."""
