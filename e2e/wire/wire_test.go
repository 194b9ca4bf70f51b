package wire

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	protoRoot = "../../proto"
	protoFile = "cri/v1/api.proto"
	// How many fields and RPCs k8s.io/cri-api v0.37.2 has. Another count means that another version is
	// linked, and that proto/cri/v1 must follow it.
	fields = 478
	rpcs   = 43
)

func ours(t *testing.T) protoreflect.FileDescriptor {
	t.Helper()
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{protoRoot}}),
	}
	files, err := compiler.Compile(context.Background(), protoFile)
	if err != nil {
		t.Fatalf("compile %s/%s: %v", protoRoot, protoFile, err)
	}
	return files[0]
}

func TestOurProtoIsTheKubelets(t *testing.T) {
	got := Facts(ours(t))
	want := Facts(cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto)
	for _, where := range slices.Sorted(maps.Keys(want)) {
		switch have, ok := got[where]; {
		case !ok:
			t.Errorf("%s: missing; cri-api has %q", where, want[where])
		case have != want[where]:
			t.Errorf("%s: ours is %q, cri-api's %q", where, have, want[where])
		}
	}
	for _, where := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[where]; !ok {
			t.Errorf("%s: %q is not in cri-api", where, got[where])
		}
	}
	t.Logf("%d facts compared, of them %d fields, %d RPCs", len(want), count(want, "field "), count(want, "rpc "))
}

func TestTheComparisonCoversTheWholeFile(t *testing.T) {
	want := Facts(cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto)
	entries := 0 // key and value of every map: fields of a message that protobuf makes up
	for where := range want {
		if strings.HasPrefix(where, "field ") && strings.Contains(where, "Entry.") {
			entries++
		}
	}
	if n := count(want, "field ") - entries; n != fields {
		t.Errorf("cri-api has %d fields, not %d", n, fields)
	}
	if n := count(want, "rpc "); n != rpcs {
		t.Errorf("cri-api has %d RPCs, not %d", n, rpcs)
	}
}

func count(facts map[string]string, prefix string) int {
	n := 0
	for where := range facts {
		if strings.HasPrefix(where, prefix) {
			n++
		}
	}
	return n
}
