"""Text to long video with ARLON, without PyTorch."""
