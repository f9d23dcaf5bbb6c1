"""Pictures of errors and certificates, drawn by matplotlib."""
