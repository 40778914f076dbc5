"""A site-packages that holds some requirements and what they bring, and nothing more."""

from importlib.metadata import distribution

from packaging.requirements import Requirement


def needed(requirements, found=None):
    """Names of the distributions that `requirements` bring in, theirs included."""
    found = set() if found is None else found
    for requirement in map(Requirement, requirements or ()):
        marker = requirement.marker
        if requirement.name not in found and (marker is None or marker.evaluate({"extra": ""})):
            found.add(requirement.name)
            needed(distribution(requirement.name).requires, found)
    return found


def link_into(site, requirements):
    """Links what `requirements` bring in, as it is installed and compiled here, into the folder `site`."""
    for name in needed(requirements):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():  # google/ is of several
                (site / top).symlink_to(found.locate_file(top))
