package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"meridian.dev/e2e/node"
)

// ServeImages starts or stops hack/registry for whoever user is in this world, with these variables besides the environment's,
// and returns what it prints: after "start", the registry's address.
func ServeImages(action, user string, environment ...string) (string, error) {
	command := exec.Command(filepath.Join(node.Top(), "hack/registry"), action, user+"-"+Name())
	command.Env = append(os.Environ(), environment...)
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("hack/registry %s: %w", action, err)
	}
	return strings.TrimSpace(string(output)), nil
}
