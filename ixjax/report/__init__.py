"""Reports: a pure function of a run directory. Imports `ixjax.io` alone."""
