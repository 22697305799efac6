"""An app of one's own on the plug-ins of pdss-fl."""
