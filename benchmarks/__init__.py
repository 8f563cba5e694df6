"""Speed and memory of the zoo: one module a suite, results in `results/<suite>/<machine>.json`."""
