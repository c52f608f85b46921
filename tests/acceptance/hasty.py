"""
`orbit-metrics` that does not wait: windows close at once, leases are short.

    python hasty.py serve

Nothing else is different from the product; a fleet can be seen to live and die in
seconds and not in minutes.
"""

from __future__ import annotations

from orbit_service import past
from orbit_service.alerting import runner
from orbit_service.alerts import store
from orbit_service.core import outbox
from orbit_service.entry import main
from orbit_service.history import sql, watch

outbox.GRACE_MS = 500 - outbox.WINDOW_MS  # half a second after they open
past.RENEW_SECONDS = 0.2
watch.LOOK_SECONDS = 0.1
sql.LEASE_MS = 5_000
store.LEASE_MS = 5_000
runner.LOOK_SECONDS = 0.5

if __name__ == "__main__":
    main()
