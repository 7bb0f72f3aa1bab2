"""Where teachers come from: files, downloads, or their own training."""
