"""Images out of the store, in the forms in which they come in.

destination   DEST, spelled like an import source
output        files and directories that appear whole or not at all
archive       a tar of files
layers        the blob of each layer: kept, rebuilt, or compressed anew
layout        oci: and oci-archive:
docker        docker-archive:
root          tar: the root filesystem as a tar
tree          dir: the root filesystem as a directory
exporter      one export from beginning to end; `Store.export_image` calls it
"""
