"""A content-addressed, deduplicated store for image layers."""
