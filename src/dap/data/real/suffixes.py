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

FOREIGN_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".svg", ".eps", ".raw", ".dng", ".cr2", ".nef", ".exr", ".hdr"})
"""The endings of image files that cannot be read here. Such files are left out, and counted."""
