"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in the request, with its remedy.

    The command line prints the message on one line and exits with code 2; no traceback.
    """
