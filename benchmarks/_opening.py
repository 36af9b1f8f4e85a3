def write_opening(found):
    return []
