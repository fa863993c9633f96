"""A guider that cannot be imported: a package that it needs is not installed."""

import a_package_that_nobody_has  # noqa: F401
