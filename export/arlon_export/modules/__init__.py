"""The networks of ARLON as torch modules."""
