"""The answer as people and programs read it: reasons, tables, plots, HTML, pandas, JSON."""
