"""One table of typed procedures for every transport, one short handler each."""
