package badinput

import (
	"fmt"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"meridian.dev/e2e/lab"
)

func marshal(message proto.Message) ([]byte, error) { return proto.Marshal(message) }

// bytesCodec sends and receives messages as they are.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(value any) ([]byte, error) {
	if text, ok := value.([]byte); ok {
		return text, nil
	}
	return nil, fmt.Errorf("%T is not bytes", value)
}

func (bytesCodec) Unmarshal(text []byte, value any) error {
	target, ok := value.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is not bytes", value)
	}
	*target = text
	return nil
}

// rawCall calls a method of the runtime service with a request that is bytes already, on a connection of its own.
func rawCall(s *scene, method string, request []byte) error {
	conn, err := grpc.NewClient("unix://"+lab.Node().Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return err
	}
	defer conn.Close()
	var reply []byte
	return conn.Invoke(s.ctx, "/runtime.v1.RuntimeService/"+method, request, &reply, grpc.ForceCodec(bytesCodec{}))
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }
