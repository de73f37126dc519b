"""Old names of the modules that make and evaluate control models; see CHANGELOG.md."""
