"""A Python without the modules and functions that Windows lacks."""

import subprocess
import sys

# What the library reference lists as available on Unix alone, as far as this Python has it.
HIDE = """
import os, signal, sys
for name in ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "getgid", "getpgid", "killpg", "mkfifo", "sched_getaffinity", "setsid",
             "sysconf", "wait4", "posix_fadvise", "chown", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK"):
    vars(os).pop(name, None)
for name in ("SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGALRM", "setitimer", "pthread_sigmask"):
    vars(signal).pop(name, None)
"""


def on_windows(code, *words, **options):
    """Run `code` with `words` as its arguments in such a Python."""
    words = [sys.executable, "-c", HIDE + code, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)
