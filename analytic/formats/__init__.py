"""Weight formats: how elements are packed and what stands beside them."""
