"""Images in, answers out: jobs, the table of errors, decisions, results."""
