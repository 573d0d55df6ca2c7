"""Commands that inspect an OUT: status, audit, report and replay. They never import the engine."""
