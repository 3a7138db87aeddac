"""The app in the browser: pick items, see what completes them and why, under rules; needs `bundle-mllm[app]`."""
