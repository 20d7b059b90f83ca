"""Ship the start-up files, and nothing else, with editable installs.

hatchling would copy every `force-include` into an editable install too. The start-up files belong there; a copy of
`coefficients/` would land in a package-less directory that no loader finds and no uninstaller removes, and the
checkout has the files anyway.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartupFilesHook(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":
            build_data["force_include_editable"] = {
                source: target
                for source, target in self.build_config.get_force_include().items()
                if target.endswith((".pth", ".start"))
            }
