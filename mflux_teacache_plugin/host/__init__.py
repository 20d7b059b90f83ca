"""How mflux comes to call plugins: hook specifications, the plugin manager, and the bridge into mflux.

mflux has no plugin host of its own. This one knows mflux's command line and its callbacks, and nothing of caching.
"""
