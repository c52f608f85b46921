"""
`orbit-metrics top`: what runs, what fails and how slow, on a terminal, as it changes.

`answers` asks, `state` tells what a key does, `view` draws, and `screen` owns the terminal:
only that one reads, writes or waits.
"""
