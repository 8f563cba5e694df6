"""Speed and memory: a module per suite, results in `results/<suite>/<machine>.json`."""
