"""A table of prompts to pictures, a hundred thousand at a time (`fewstep batch`). A batch that was stopped goes on.

`readers` and `tables` read rows, `rows` makes a checked call of each, `paint` makes pictures of those that share settings,
`store` and `packing` put them in place, `ledger` knows what is done, `run` goes through it all.
"""
