"""What every web server of edgeft shares: guard, content policy, connection limits."""

from edgeft.web.content_policy import content_policy

__all__ = ["content_policy"]
