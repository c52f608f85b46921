"""Where bytes come in and go out: the Unix socket for workers, HTTP for dashboards."""
