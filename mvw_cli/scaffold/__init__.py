"""What `mvw new-adapter` writes: a package with an adapter, from the templates beside this file.

It knows files and names. It does not know the command line, and it imports no adapter.
"""

from mvw_cli.scaffold.files import render as render
from mvw_cli.scaffold.files import write as write
from mvw_cli.scaffold.names import Names as Names
from mvw_cli.scaffold.names import check_name as check_name
