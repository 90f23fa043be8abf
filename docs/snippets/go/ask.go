// Ask delivers a text to a member of a mob and prints the output of the run that consumes it.
//
//	ask MOB MEMBER TEXT [INPUT_ID]
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	mobdv1 "example.com/ask/gen/mobd/v1"
)

// What the server answers with UNAVAILABLE may be repeated, because the input_id makes a repeat harmless.
const tries = 20

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: ask MOB MEMBER TEXT [INPUT_ID]")
		os.Exit(2)
	}
	inputID := newID()
	if len(os.Args) > 4 {
		inputID = os.Args[4]
	}
	output, err := ask(context.Background(), os.Args[1], os.Args[2], os.Args[3], inputID)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(output)
}

// ask returns the output, a JSON text.
func ask(ctx context.Context, mob, member, text, inputID string) (string, error) {
	target := os.Getenv("MOBD_TARGET")
	if target == "" {
		target = "localhost:7780"
	}
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	bridge := mobdv1.NewBridgeServiceClient(connection)

	err = repeated(func() error { return deliver(ctx, bridge, mob, member, text, inputID) })
	if err != nil {
		return "", err
	}
	var input *mobdv1.Input
	err = repeated(func() error {
		input, err = follow(ctx, bridge, mob, member, inputID)
		return err
	})
	if err != nil {
		return "", err
	}
	if input.GetState() != mobdv1.InputState_INPUT_STATE_CONSUMED {
		return "", fmt.Errorf("%s: %s", input.GetState(), input.GetReason())
	}
	return input.GetOutputJson(), nil
}

// deliver returns when the input is durable.
func deliver(ctx context.Context, bridge mobdv1.BridgeServiceClient, mob, member, text, inputID string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	answer, err := bridge.Deliver(ctx, &mobdv1.DeliverRequest{
		MobId:    mob,
		MemberId: member,
		InputId:  inputID,
		Content:  &mobdv1.Content{Blocks: []*mobdv1.Block{{Block: &mobdv1.Block_Text{Text: text}}}},
	})
	if err != nil {
		return err
	}
	if refused := answer.GetRejected(); refused != nil {
		return fmt.Errorf("refused: %s", refused.GetReason())
	}
	return nil
}

// follow returns the input as it ended.
func follow(ctx context.Context, bridge mobdv1.BridgeServiceClient, mob, member, inputID string) (*mobdv1.Input, error) {
	request := &mobdv1.WatchInputRequest{MobId: mob, MemberId: member, InputId: inputID}
	stream, err := bridge.WatchInput(ctx, request)
	if err != nil {
		return nil, err
	}
	var last *mobdv1.Input
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last = answer.GetInput()
	}
}

// repeated calls until the server answers.
func repeated(call func() error) error {
	for left := tries; ; left-- {
		err := call()
		if status.Code(err) != codes.Unavailable || left == 0 {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func newID() string {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%x", id)
}
