"""The report: one HTML page with the runs, failures, pictures and curves of an OUT."""
