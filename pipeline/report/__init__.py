"""What people read: the report and the inspection page."""
