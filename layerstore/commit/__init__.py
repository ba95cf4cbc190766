"""Turns an upper directory into a layer and an image.

    upper     what an upper directory says, mark by mark
    base      the merged tree of the image below it
    changes   both together: the entries of the layer, in order
    config    the new image's config
    committing  the verb

An OCI layer has neither redirects nor metacopy, and knows nothing of an index of hard links. So what
those say is looked up in the base: a renamed directory is written whole under its new name, and its
old name as a whiteout.
"""
