"""The data layer as a configuration declares it: parameter records that epp.app turns into sources."""
