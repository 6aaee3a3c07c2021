"""The emoji data set: pictures with names from openly licensed emoji fonts. The README beside this file is its data card."""
