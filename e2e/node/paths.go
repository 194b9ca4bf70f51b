package node

import (
	"os"
	"path/filepath"
	"runtime"
)

// Top is the root of the checkout.
func Top() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Binary returns the path of one of our programs: in $MERIDIAN_BIN, or where `make build` puts them.
func Binary(name string) string {
	if directory := os.Getenv("MERIDIAN_BIN"); directory != "" {
		return filepath.Join(directory, name)
	}
	return filepath.Join(Top(), "target/bin", name)
}

// Cache is where hack/install keeps what it fetched; the same rule as in hack/env.
func Cache() string {
	if directory := os.Getenv("MERIDIAN_CACHE"); directory != "" {
		return directory
	}
	if directory := os.Getenv("XDG_CACHE_HOME"); directory != "" {
		return filepath.Join(directory, "meridian")
	}
	return filepath.Join(os.Getenv("HOME"), ".cache/meridian")
}
