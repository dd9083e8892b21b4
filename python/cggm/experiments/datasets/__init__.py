"""The data sets that come with the library, and the ones it reads from files of the user's."""
