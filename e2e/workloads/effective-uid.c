/*
 * effective-uid: prints "Effective uid: N". Its stand-in image gives it to root with the setuid bit, so that N tells
 * whether no_new_privs was set. The name of the image and the line are what critest looks for.
 */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %u\n", (unsigned int)geteuid());
	return 0;
}
