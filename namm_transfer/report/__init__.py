"""Transfer reports: records on disk, statistics, and the pages made from them.

`build.build(folder)` is the report over the records of a folder, `render.write` its three files, `merge.merge` one
report of several.
"""
