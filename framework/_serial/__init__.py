"""Values, functions and errors as bytes: pickle protocol 5 with out-of-band buffers, nested references
counted.

Read in this order: `refs` (how references take part), `pickler` (the one pickler), `values` (the wire form),
`culprit` (what could not be pickled), `functions`, `errors`.
"""
