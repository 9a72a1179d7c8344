"""Complete stories: an opening about a subject, a guided middle, an end."""
