"""Tasks: one module per benchmark, named as the task. Nothing else imports `datasets`."""
