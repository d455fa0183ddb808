"""Reports: tables, plots, a page with the worst sequences, and the paper's rows to compare with."""
