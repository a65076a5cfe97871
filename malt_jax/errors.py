"""Errors that are meant for the person who runs a command."""


class UserError(Exception):
    """Something that the user can put right: an option, a file, a checkpoint, a question.

    The message says what was wrong, where (file, field, value) and what to do. Commands print it
    without a traceback and exit with code 2.
    """
