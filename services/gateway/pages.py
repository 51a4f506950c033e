"""Build the security headers of pages: no foreign content, no framing, no referrer."""

from __future__ import annotations

_NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def headers(*allowed: str) -> dict[str, str]:
    """Return the headers of a page that may load only what the directives allow, such as "script-src 'self'"."""
    return {
        "content-security-policy": "; ".join((_NOTHING_ELSE, *allowed)),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
