"""The names of image files: one list for folders, imports, shards and rows of tables."""

from __future__ import annotations

FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "CUR": (".cur",),
    "DDS": (".dds",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SUN": (".ras",),
    "FITS": (".fit", ".fits"),
    "FLI": (".fli", ".flc"),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "IM": (".im",),
    "MSP": (".msp",),
    "PCD": (".pcd",),
    "PIXAR": (".pxr",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
}
"""The formats that are read, as Pillow calls them, and the endings of their files."""

REFUSED = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC", "PDF", "PALM"})
"""Formats that Pillow knows and that are not read, whatever the file is called. EPS is a program that Ghostscript runs.
The others are no pictures, or Pillow cannot decode them by itself."""

IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""The endings of image files, in lower case. The content decides how a file is read, not its ending."""

FILMS = {"mp4": (".mp4", ".m4v", ".mov"), "matroska": (".mkv", ".webm"), "avi": (".avi",)}
"""The containers of films that are read as clips, as FFmpeg calls them, and the endings of their files."""

CLIP_SUFFIXES = frozenset({*(end for ends in FILMS.values() for end in ends), ".gif", ".png", ".apng", ".webp"})
"""The endings of files that are read as clips, in lower case. The content decides how a file is read, not its ending."""

_OTHER_IMAGES, _MEDICAL = (".heic", ".heif", ".jxl", ".svg"), (".dcm", ".nii")
_FILMS = (".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm")

UNREAD = frozenset({*_OTHER_IMAGES, *_MEDICAL, *_FILMS})
"""The endings of files with pictures that are not read as images. A folder that holds some may be a class all the same."""

CONTAINERS = (
    ((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"), "a compressed archive", "unpack it, and give the folder"),
    ((".zip", ".7z", ".rar"), "an archive", "unpack it, and give the folder"),
    (
        (".npz", ".npy"),
        "a file of numpy arrays",
        'save it with torch.save({"images": torch.from_numpy(x), "labels": torch.from_numpy(y)}, "set.pt"), and give set.pt',
    ),
    ((".mdb", ".lmdb"), "an LMDB database", "write its images into one folder for each class, and give the folder"),
    ((".h5", ".hdf5"), "an HDF5 file", "save its arrays as tensors with torch.save, and give the .pt file"),
    (
        (".arrow",),
        "an Arrow file of datasets' save_to_disk",
        "load it and write it with to_parquet, and give that file",
    ),
    ((".tfrecord", ".rec", ".beton"), "a file of records", "write its images into one folder for each class"),
    ((".pkl", ".pickle", ".mat"), "a file of Python or MATLAB objects", "save its images and labels with torch.save"),
    ((".pt", ".pth", ".safetensors"), "a file of tensors", "make a set of it with dap import"),
    ((".tar",), "an archive", "make a set of it with dap import, or unpack it and give the folder"),
    ((".gz", ".bz2", ".xz", ".zst"), "a compressed file", "unpack it, and give the folder"),
    (_OTHER_IMAGES, "an image in a format that is not read", "save it as PNG or JPEG"),
    (_MEDICAL, "a medical image", "save its slices as PNG"),
    (_FILMS, "a film", "save its frames as PNG or JPEG"),
)
"""Files of images that are not read as they are: their endings, what they are, and the way out for `dap import`."""


def container(name: str) -> tuple[str, str] | None:
    """What a file of this name is and the way out, from `CONTAINERS`; None where its ending is none of them."""
    return next(((what, way) for ends, what, way in CONTAINERS if name.lower().endswith(ends)), None)
