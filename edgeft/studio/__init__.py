"""A workspace folder -> a local page for the whole way from data to a release, as jobs of edgeft's own commands.

options    what is opened, and where it listens
forms      a command's options, as the command line describes them -> fields; values -> command line and TOML
pages      which forms stand on which page, and what they offer
workspace  a folder -> its data, adapters, artifacts and reports; rename, delete, undo, upload
jobs       a queue of commands on disk, and the processes that run them
app        all of this as an ASGI application
run        the application on a socket until Ctrl-C

The command line, which is one floor above, hands in its commands as `forms.Commands`.
"""

from edgeft.studio.options import StudioOptions
from edgeft.studio.run import studio

__all__ = ["StudioOptions", "studio"]
