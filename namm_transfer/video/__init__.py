"""Old name of the module that trains the small video model; see CHANGELOG.md."""
